"""Tables, charts, videos and HTML pages."""
