"""Export targets whose samples are members of tars: Energon and FastGen."""
