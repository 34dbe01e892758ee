"""The methods, one file each: loss functions and the module that uses them."""
