"""What the API serves to browsers: the client as a module, the element, and the page of a job made of them."""
