"""How fast this machine trains a model (`training`), writes with it (`generation`) and serves it (`serving`)."""
