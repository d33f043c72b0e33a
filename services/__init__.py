"""Example services, each a package: `jobs.py` is the contract, `app.py` the worker's side."""
