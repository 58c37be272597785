"""From YAML to typed options."""
