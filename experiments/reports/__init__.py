"""Tables, charts, videos and HTML pages of results."""
