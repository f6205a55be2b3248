/* PCI configuration space by ports 0CF8h and 0CFCh (PCI Local Bus Specification 3.0, section 3.2.2.3.2). */

#define PCI_ADDRESS 0xCF8
#define PCI_DATA 0xCFC
#define PCI_COMMAND 0x04
#define PCI_CLASS 0x08
#define PCI_HEADER 0x0E
#define PCI_CAPABILITIES 0x34

/* bdf: bus in bits 15-8, device in 7-3, function in 2-0, as INT 1Ah has it in BX. */
static inline u16 pci_select(u16 bdf, u8 offset)
{
    outl(PCI_ADDRESS, 0x80000000u | (u32)bdf << 8 | (offset & 0xFC));
    return PCI_DATA + (offset & 3);
}

static inline u8 pci_read8(u16 bdf, u8 offset) { return inb(pci_select(bdf, offset)); }
static inline u16 pci_read16(u16 bdf, u8 offset) { return inw(pci_select(bdf, offset)); }
static inline u32 pci_read32(u16 bdf, u8 offset) { return inl(pci_select(bdf, offset)); }
static inline void pci_write8(u16 bdf, u8 offset, u8 value) { outb(pci_select(bdf, offset), value); }
static inline void pci_write16(u16 bdf, u8 offset, u16 value) { outw(pci_select(bdf, offset), value); }
static inline void pci_write32(u16 bdf, u8 offset, u32 value) { outl(pci_select(bdf, offset), value); }

/* The next function behind *bdf* that there is, on buses up to the last; 0 behind the last. Begin with 0, which is the
   host bridge. */
u16 pci_next(u16 bdf);
