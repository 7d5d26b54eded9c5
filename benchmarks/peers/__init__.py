"""What runs inside a process under measurement, and the peers' requirements."""
