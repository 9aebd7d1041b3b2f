"""What may intercept in a cluster: nothing, or upstream Merbridge."""
