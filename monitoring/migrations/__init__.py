"""The steps that bring a store of an earlier Evergreen up to this one; `monitoring/store.py` runs them."""
