"""From co-occurrence to groups: counts, embeddings, partitions, and group ids that stay from run to run."""
