"""What a driver and the core say to each other: models, hooks, and who is installed."""
