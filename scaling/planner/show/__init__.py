"""Plans and rankings on the screen."""
