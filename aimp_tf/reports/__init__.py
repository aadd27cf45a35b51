"""What people read: results, pages, plots, the display of progress."""
