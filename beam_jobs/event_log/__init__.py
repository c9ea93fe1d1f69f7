"""Reading an event log: files, columns, times, ids; what is set aside, and what is said about the rest."""
