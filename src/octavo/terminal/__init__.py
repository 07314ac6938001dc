"""What a command draws while it works: `progress` of any long work, and the events of a `training`."""
