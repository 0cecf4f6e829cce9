"""Engine `llamacpp`: llama.cpp in process, one base model and any number of adapters."""
