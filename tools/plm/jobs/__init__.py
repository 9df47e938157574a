"""One folder for each job: everything that serves one stage alone. No job imports another."""
