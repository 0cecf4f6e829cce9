"""Fine-tuning for customers: the request, the jobs, and the settlement of what training used."""
