"""What the compilers make of the losses, for devices that are not here."""
