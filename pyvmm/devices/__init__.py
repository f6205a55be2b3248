"""The chips of the board, one a file, each written against the primitives and tested without KVM."""
