"""Where weights come from: the hub, files, official and published names; building the base model of a config."""
