"""The page that people leave open: its files, its session, and the numbers it shows."""
