"""What is trained and used: the approximate network, a model under a method, a model of static shapes."""
