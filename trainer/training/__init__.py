"""What a training run keeps beside its model: optimizer, averages, state, and an earlier run's weights."""
