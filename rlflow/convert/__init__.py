"""ms-swift command lines to rlflow specs and commands."""
