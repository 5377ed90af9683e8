"""What training and imagining cost, from shapes alone, and checks of these figures against measurements."""
