"""Where actors run, what they hold, and how the controller talks to them."""
