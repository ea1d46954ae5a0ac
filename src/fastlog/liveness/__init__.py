"""Who is alive: slots that are locks of the kernel, and a thread that notices deaths."""
