"""What a server decides about its calls: whether one may run now, waits for a moment, or is refused. Pure."""
