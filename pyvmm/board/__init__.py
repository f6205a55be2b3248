"""What is on the board: chips, addresses, interrupt lines, memory slots."""
