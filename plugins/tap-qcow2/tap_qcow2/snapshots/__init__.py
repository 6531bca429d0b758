"""Internal snapshots."""
