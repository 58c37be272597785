"""Programs that run exported files: each behind one interface, without PyTorch."""
