"""Typed, frozen job specs. The only place that knows YAML."""
