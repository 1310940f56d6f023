"""What all other packages use; nothing here imports them."""
