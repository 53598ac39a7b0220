"""How far the loop of `tidewheel up` is: its phases, and the screen that shows them."""
