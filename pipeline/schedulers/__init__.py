"""Files for schedulers that exist: each calls `dnc retrain` and holds no logic of its own."""
