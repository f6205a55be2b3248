"""Why a guest died, on one screen: what a person sees when a machine has ended badly."""
