"""What lies on disk, and how a run goes on from it."""
