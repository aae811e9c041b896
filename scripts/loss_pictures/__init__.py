"""What each loss does, as a picture: every number comes from a call of the loss and its backward."""
