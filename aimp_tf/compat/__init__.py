"""What differs between the generations of Keras, and what TensorFlow does behind both of them."""
