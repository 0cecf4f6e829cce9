"""The classify task: a text gets one of the labels it was taught."""
