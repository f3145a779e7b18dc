"""Arrays in, arrays out: the room that knows no trees and no names."""
