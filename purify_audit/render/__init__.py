"""Reports and judgements rendered for people, CI services and other tools."""
