"""What every job uses: the command line, pipelines, batches between steps, files, object stores, hashes."""
