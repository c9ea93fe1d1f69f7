"""Reading an event log: files, columns, times, ids; what is set aside; its schema against the last log's."""
