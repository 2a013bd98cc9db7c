"""What all commands share: options, help, errors, exit codes."""
