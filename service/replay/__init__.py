"""The loop over a file on a simulated clock, beside plain schedules: what a policy would have been worth."""
