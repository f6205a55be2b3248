/* What the parts of INT 10h have of each other. */

#define TEXT_SEG 0xB800
#define FRAME_SEG 0xA000
#define FRAME_WIDTH 320
#define GRAPHICS 0x13 /* the one mode with pixels */

#define VGA_ATTRIBUTE 0x3C0
#define VGA_ATTRIBUTE_READ 0x3C1
#define VGA_MISC 0x3C2
#define VGA_SEQUENCER 0x3C4
#define VGA_DAC_MASK 0x3C6
#define VGA_DAC_READ 0x3C7
#define VGA_DAC_WRITE 0x3C8
#define VGA_DAC_DATA 0x3C9
#define VGA_GRAPHICS 0x3CE
#define VGA_CRTC 0x3D4
#define VGA_STATUS 0x3DA
#define ATTRIBUTE_ON 0x20

#define CRTC_CURSOR_START 0x0A
#define CRTC_CURSOR_END 0x0B
#define CRTC_START 0x0C
#define CRTC_CURSOR 0x0E

static inline void vga_write(u16 port, u8 index, u8 value)
{
    outw(port, index | value << 8);
}

void video_palette(struct regs *r);       /* AH=10h */
void load_default_palette(int graphics);
