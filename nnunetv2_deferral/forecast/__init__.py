"""The Dice to expect of a predicted mask, without a reference."""
