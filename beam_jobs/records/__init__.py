"""What a user's events become: training windows and evaluation users, as TFRecords."""
