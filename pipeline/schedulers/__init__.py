"""Files for existing schedulers: each only calls `dnc retrain` and adds no logic."""
