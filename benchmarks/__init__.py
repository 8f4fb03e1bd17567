"""Measurements of Evergreen; each prints what it measured on which machine, and what it does not show."""
