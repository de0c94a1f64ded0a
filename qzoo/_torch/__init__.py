"""What every room that stands on PyTorch may use: its defaults and threads, set for a while."""
